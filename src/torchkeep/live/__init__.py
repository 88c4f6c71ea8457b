"""torch objects to plain trees and back: capture, build, apply, optimizer state by name, freezing, RNG."""
