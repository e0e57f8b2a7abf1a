"""The reports of a run and of studies: pages that need no other file."""
