"""Makes the committed golden data of testdata/golden (see testdata/golden/README.md)."""
