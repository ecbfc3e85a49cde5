"""Devices and processes: the mesh, the layout of every record on it, agreement between hosts."""
