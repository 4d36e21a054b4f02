"""Docker containers on this machine; their processes are visible to users with the right to see them."""

from .local_cwd import Local

SCHEDULER = Local()
