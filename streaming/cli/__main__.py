"""`python -m streaming.cli`: the command line without its console script."""

from streaming.cli import main

main()
