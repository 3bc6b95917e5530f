"""The command `python -m docs.validation`."""

from .comparison import main

if __name__ == "__main__":
    main()
