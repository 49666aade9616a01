"""`python -m llmtap_launcher` does what the console script `llmtap` does."""

from llmtap_launcher.cli import main

if __name__ == "__main__":
    main(prog_name="llmtap")
