"""The checks of `glgpu doctor`: each looks at facts alone, and says what is wrong."""
