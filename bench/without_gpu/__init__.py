"""What can be known of a GPU without one: compiled code, launches, bytes, products, and a projection from them."""
