"""One module a command, thin: `vecmill <job> ...` and `python -m jobs.<job> ...` are the same."""
