"""Values and parsers, without a socket or a thread. Imports nothing else of netkit."""
