"""TLS by OpenSSL in memory, its contexts, and what its failures mean. Imports `netkit.core`."""
