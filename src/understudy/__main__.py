"""`python -m understudy`, and `accelerate launch -m understudy` for several processes."""

from understudy.cli import main

if __name__ == "__main__":
    main()
