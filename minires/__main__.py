"""`python -m minires` is the command line."""
from minires.cli import main

if __name__ == "__main__":
    main()
