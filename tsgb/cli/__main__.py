"""`python -m tsgb.cli`: how a worker is started without its console script on the path."""

from tsgb.cli import main

main()
