"""The examples for Docker, Kubernetes, HAProxy and OpenTelemetry do what they say."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import PATIENCE, ROOT, Program, receive_all, tool, wait_until

EXAMPLES = ROOT / "examples"
NETKIT = [sys.executable, "-m", "netkit"]


# Docker


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, each with its arguments."""
    text = (EXAMPLES / "Dockerfile").read_text()
    lines = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ").splitlines()
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines if line)]


def only(name: str) -> str:
    """The arguments of the instruction of this name, of which there is one."""
    (found,) = [rest for each, rest in instructions() if each == name]
    return found


def environment_of_image() -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(only("ENV")))  # type: ignore[misc]


def command_of_image() -> list[str]:
    """What the image runs, with the netkit of this checkout."""
    command = [*json.loads(only("ENTRYPOINT")), *json.loads(only("CMD"))]
    assert command[0] == "netkit"
    return [*NETKIT, *command[1:]]


def with_variables(**variables: str) -> list[str]:
    return ["env", *(f"{name}={value}" for name, value in variables.items())]


def checked(**variables: str) -> dict[str, str]:
    """What holds with these variables, by ``--check``."""
    done = subprocess.run(
        [*with_variables(**variables), *command_of_image(), "--check"],
        cwd=EXAMPLES,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return dict(re.split(r"  +", line)[:2] for line in done.stdout.splitlines())  # type: ignore


def test_the_image_is_made_of_files_that_exist_and_does_not_run_as_root() -> None:
    copies = [rest.split() for name, rest in instructions() if name == "COPY"]
    assert [(ROOT / source).exists() for source, _ in copies] == [True] * len(copies)
    user, group = map(int, only("USER").split(":"))
    assert user > 0
    assert group > 0
    assert only("FROM").startswith("python:3.")
    names = [name for name, _ in instructions()]
    assert names.index("USER") < names.index("ENTRYPOINT")


def test_the_image_exposes_the_ports_on_which_it_listens() -> None:
    found = checked(**environment_of_image())
    assert [found["address"], found["status"]] == ["*:8080", "*:9101"]
    assert only("EXPOSE").split() == ["8080", "9101"]
    assert float(found["stop_delay"]) + float(found["drain_timeout"]) + 2 < 10
    probe = only("HEALTHCHECK").partition(" CMD ")[2]
    assert json.loads(probe) == ["netkit", "connect", "--probe", "127.0.0.1:8080"]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_the_command_of_the_image_stops_gracefully_as_process_1() -> None:
    inside = [tool("unshare"), "--pid", "--fork", "--mount-proc", "--kill-child"]
    if subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("no process namespaces here")
    variables = {**environment_of_image(), "NETKIT_ADDRESSES": "0", "NETKIT_STATUS": "*:0"}
    command = [*inside, *with_variables(**variables), *command_of_image()]
    with Program(*command, cwd=EXAMPLES) as program:
        assert all(line.startswith("{") for line in program.lines)
        with program.connect() as sock:
            assert sock.recv(100) == b"your name?\n"
            probe = [*NETKIT, "connect", "--probe", f"127.0.0.1:{program.port}"]
            environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
            assert subprocess.run(probe, env=environment, timeout=PATIENCE).returncode == 0
            (first,) = program.children()
            os.kill(first, signal.SIGTERM)
            assert receive_all(sock).startswith(b"* ")  # of a member without a name
        assert program.wait() == 0
        assert "stopped: 1 finished, 0 cut" in program.lines[-1]


# Kubernetes


def manifest() -> list[Any]:
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((EXAMPLES / "kubernetes.yaml").read_text()))


def test_the_pods_have_time_to_stop_and_probes_of_the_status_endpoint() -> None:
    deployment, service = manifest()
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert "command" not in container  # that of the image
    variables = {each["name"]: each["value"] for each in container["env"]}
    found = checked(**environment_of_image(), **variables)
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert found["address"] == f"*:{ports['chat']}"
    assert found["status"] == f"*:{ports['status']}"
    seconds = float(found["stop_delay"]) + float(found["drain_timeout"]) + 2
    assert seconds < pod["terminationGracePeriodSeconds"]
    assert "preStop" not in str(container)
    probes = {name: container[name]["httpGet"] for name in ("readinessProbe", "livenessProbe")}
    assert probes["readinessProbe"] == {"path": "/readyz", "port": "status"}
    assert probes["livenessProbe"] == {"path": "/healthz", "port": "status"}
    metadata = deployment["spec"]["template"]["metadata"]
    assert metadata["annotations"]["prometheus.io/port"] == str(ports["status"])
    labels = metadata["labels"]
    assert labels == deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]
    assert service["spec"]["ports"][0]["targetPort"] in ports


def test_the_probes_say_that_a_pod_is_ready_until_it_is_to_stop(tmp_path: Path) -> None:
    _, container = manifest()[0], manifest()[0]["spec"]["template"]["spec"]["containers"][0]
    status = tmp_path / "status"
    variables = {
        **environment_of_image(),
        **{each["name"]: each["value"] for each in container["env"]},
        "NETKIT_ADDRESSES": "127.0.0.1:0",
        "NETKIT_STATUS": f"unix:{status}",
    }
    command = [*with_variables(**variables), *command_of_image()]

    def answer(probe: str) -> int:
        path = container[probe]["httpGet"]["path"]
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(status))
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: pod\r\n\r\n".encode())
            return int(sock.recv(1000).split()[1])

    with Program(*command, cwd=EXAMPLES) as program:
        wait_until(lambda: answer("readinessProbe") == 200)
        program.send_signal(signal.SIGTERM)
        wait_until(lambda: answer("readinessProbe") == 503)
        assert answer("livenessProbe") == 200
        with program.connect() as sock:  # a client that comes late is served
            assert sock.recv(100) == b"your name?\n"
        program.send_signal(signal.SIGINT)  # ends the delay
        assert program.wait() == 0


# HAProxy, which system/test_cluster.py runs


def test_haproxy_accepts_its_configuration_and_the_flags_in_it_exist() -> None:
    path = EXAMPLES / "haproxy.cfg"
    done = subprocess.run(
        [tool("haproxy"), "-c", "-f", path], capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    text = path.read_text()
    command = re.search(r"netkit (serve .*?)\n#\n", text, re.DOTALL)
    assert command
    words = shlex.split(command[1].replace("\\\n#", " "))
    words[words.index("app:Shout")] = "chat:chat"
    done = subprocess.run(
        [*NETKIT, *words, "--check"],
        cwd=EXAMPLES,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"server a 10\.0\.1\.2:8080\n", text)
    assert re.search(r"^status +\*:9101 ", done.stdout, re.MULTILINE)
    assert "agent-port 9101" in text


# OpenTelemetry

# Stands in for the packages of OpenTelemetry where these are not installed. Not their code.
STAND_IN = {
    "__init__.py": "",
    "metrics.py": """
def get_meter(name):
    return Meter()

class Meter:
    def create_histogram(self, name, unit): return Instrument(name)
    create_counter = create_up_down_counter = create_histogram

class Instrument:
    def __init__(self, name): self.name = name
    def add(self, amount, attributes={}): found.append((self.name, amount, attributes))
    record = add

found = []
""",
    "trace.py": """
import contextlib, enum

class SpanKind(enum.Enum):
    SERVER = 1

class Tracer:
    @contextlib.contextmanager
    def start_as_current_span(self, name, kind=None, attributes=None):
        yield
        found.append((name, attributes))

def get_tracer(name):
    return Tracer()

found = []
""",
}

# What a program sees by each: the names of spans, and those of the instruments that were used.
OBSERVE = """
import json
import examples.otel as otel
import netkit
with netkit.create_server(otel.shout).listen(0, "127.0.0.1") as server:
    with netkit.connect(server.address.port, "127.0.0.1") as conn:
        conn.end("hello\\nthere\\n")
        assert conn.read() == b"HELLO!\\nTHERE!\\n"
"""
BY_STAND_IN = """
from opentelemetry import metrics, trace
spans = [name for name, _ in trace.found]
names = {name for name, *_ in metrics.found}
"""
BY_SDK = """
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter, reader, provider = InMemorySpanExporter(), InMemoryMetricReader(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
metrics.set_meter_provider(MeterProvider([reader]))
"""
OF_SDK = """
found = exporter.get_finished_spans()
spans = [each.name for each in found]
inner, last = found[0], found[-1]
assert inner.parent.span_id == last.context.span_id
assert last.attributes["client.address"] == "127.0.0.1"
assert last.kind is trace.SpanKind.SERVER
scopes = reader.get_metrics_data().resource_metrics[0].scope_metrics
names = {metric.name for scope in scopes for metric in scope.metrics}
"""
SHOW = "\nprint(json.dumps([spans, sorted(names)]))\n"


@pytest.mark.parametrize("kind", ["sdk", "stand-in"])
def test_opentelemetry_gets_a_span_for_each_client_and_metrics(kind: str, tmp_path: Path) -> None:
    if kind == "sdk":
        if importlib.util.find_spec("opentelemetry") is None:
            pytest.skip("opentelemetry-sdk is not installed")
        program = BY_SDK + OBSERVE + OF_SDK + SHOW
    else:
        (tmp_path / "opentelemetry").mkdir()
        for name, source in STAND_IN.items():
            (tmp_path / "opentelemetry" / name).write_text(source)
        program = OBSERVE + BY_STAND_IN + SHOW
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        ["line", "line", "shout"],
        ["netkit.active_connections", "netkit.connection.duration"],
    ]
