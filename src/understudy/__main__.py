"""`python -m understudy` is `understudy`; launchers of several processes take a module name."""

from understudy.cli import main

main()
