"""The model: its tokens, its output layer, its precision, its adapters, how it is loaded."""
