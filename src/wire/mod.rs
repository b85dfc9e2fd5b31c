//! Packet codecs as `Repr` pairs of `parse` and `emit`. PURE: bytes in, values out.
