"""What an operator sees of a program that serves. Imports `netkit.process` and all below it.

Nothing of it is imported unless it is switched on.
"""
