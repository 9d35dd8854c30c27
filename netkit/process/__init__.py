"""A whole program that serves: signals, and worker processes. Imports `netkit.server` and below."""
