"""The name and the contents of the distribution. pyproject.toml configures its tools."""

import os
import re
import sysconfig
from pathlib import Path

from setuptools import Extension, find_packages, setup

here = Path(__file__).parent
source = (here / "netkit/__init__.py").read_text(encoding="utf-8")
version = re.search(r'__version__ = "(.+)"', source)
assert version

# A package index shows the README alone, where a link to another file of the project is dead: the
# link becomes plain text.
readme = (here / "README.md").read_text(encoding="utf-8")
readme = re.sub(r"\[([^\]]+)\]\((?!https?:)[^)]+\)", r"\1", readme)

# Everything works without the compiled module, which is of use only with the GIL.
gate = Extension("netkit.net._gate", ["netkit/net/_gate.c"], optional=True)
has_gate = os.name == "posix" and not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    name="netkit-tcp",  # the name netkit belongs to another project
    version=version[1],
    description="A blocking TCP toolkit with one thread for each client",
    long_description=readme,
    long_description_content_type="text/markdown",
    author="The netkit authors",
    license="MIT",
    packages=find_packages(include=["netkit", "netkit.*"]),
    package_data={"netkit": ["py.typed"], "netkit.net": ["_gate.pyi"]},
    ext_modules=[gate] if has_gate else [],
    python_requires=">=3.10",
    extras_require={
        "cli": ["prompt_toolkit>=3.0.29", "rich>=12.6"],  # for `netkit connect` on a terminal
        "reload": ["watchfiles"],  # for `netkit serve --reload`, which does without, too
        "tls": ["cryptography"],  # for self-signed certificates
    },
    entry_points={"console_scripts": ["netkit = netkit.__main__:run"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Operating System :: POSIX",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Programming Language :: Python :: 3.15",
        "Programming Language :: Python :: Implementation :: CPython",
        "Topic :: Internet",
        "Topic :: System :: Networking",
        "Typing :: Typed",
    ],
)
