"""The command line. Imports all other packages; none imports it."""
