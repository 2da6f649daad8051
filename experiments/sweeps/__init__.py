"""Arms of the comparisons."""
