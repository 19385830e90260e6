"""A small English world with known ground truth: its content, requests, corpus and grader."""
