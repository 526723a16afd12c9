"""`python -m syncnorm`: the same as the command `syncnorm`."""

from syncnorm.service.cli.main import main

if __name__ == "__main__":
    main()
