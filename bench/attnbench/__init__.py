"""The benchmarks: attnlower beside eager, torch.compile and what one would write by hand, in alternating rounds."""
