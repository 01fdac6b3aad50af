"""What the tests share: an agent process, tiny models, users, the stock client's stubs."""
