"""Networks whose weights are boxes: what is learned later stays inside of what was certified before."""
