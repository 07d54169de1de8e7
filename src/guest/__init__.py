"""The guest: what runs inside a desktop (X server, window manager, browser, HTTP server).

It runs under Debian's own Python with Debian's packages only (see envs/desktop/apt.txt) and imports
nothing of ``arpo_replica``: a container or VM image can carry the folder as it is.
"""
