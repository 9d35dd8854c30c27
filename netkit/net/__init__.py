"""One socket each: connections, addresses to bind, and what they need. Imports `netkit.core`
and `netkit.tls`.
"""
