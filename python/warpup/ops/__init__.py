"""The operators, by family. Each op has, in this order: reference, fakes, autograd Function, public function."""
