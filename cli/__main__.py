"""`python -m cli COMMAND`, the same as `llmis COMMAND`."""

from cli.main import main

if __name__ == "__main__":
    main()
