"""What is promised, measured: each benchmark writes a JSON file under results/; docs/benchmarks.md is rendered from them."""
