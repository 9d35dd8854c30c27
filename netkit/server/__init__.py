"""The server: listeners, admission, threads, handlers and events in the log. Imports
`netkit.core`, `netkit.tls` and `netkit.net`.
"""
