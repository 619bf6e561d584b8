"""`python -m vae_fast` prints what is available here and why not."""

from vae_fast import report

if __name__ == "__main__":
    print(report())
