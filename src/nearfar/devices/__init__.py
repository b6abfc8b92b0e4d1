"""What this machine is. `detect.py` is the whole of it; each other file finds one kind of thing and says why."""
