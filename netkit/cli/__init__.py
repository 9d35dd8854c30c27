"""The command line. Each command is a module with its name; `netkit.cli.main` says how to add one.

Imports all other packages; none imports it.
"""
