"""`python -m vae_fast` prints what is available here and why not."""

import argparse

from vae_fast import report

if __name__ == "__main__":
    description = "Prints what is available here and why not. To train, test and sample: vae-fast"
    argparse.ArgumentParser("python -m vae_fast", description=description).parse_args()
    print(report())
