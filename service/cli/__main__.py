"""`python -m syncnorm.service.cli`."""

from syncnorm.service.cli.main import main

main()
