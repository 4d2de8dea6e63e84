"""Judge captures that someone else's code made, and what that code did to the model."""
