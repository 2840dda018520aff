"""`python -m jobs.evaluate`."""

from jobs.cli import run
from jobs.evaluate import main

if __name__ == "__main__":
    run(main)
