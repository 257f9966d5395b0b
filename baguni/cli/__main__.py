"""`python -m baguni.cli`: the `baguni` command."""

from baguni.cli.root import main

main()
