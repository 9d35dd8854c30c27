"""Connects to a server. Imports `netkit.core`, `netkit.tls` and `netkit.net`."""
