"""`python -m lanewise`: the command line where no console script is installed."""

from lanewise.cli.main import main

if __name__ == "__main__":
    main()
