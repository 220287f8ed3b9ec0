//! Choices made by bytes, one after the other; zeros, when there are no more.

/// What is left of an input.
pub struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    pub const fn new(bytes: &'b [u8]) -> Self {
        Self(bytes)
    }

    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *byte
    }

    pub fn word(&mut self) -> u32 {
        u32::from_be_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    /// A number below `end`, which is 1 to 256.
    pub fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    pub fn choose<'c, T>(&mut self, among: &'c [T]) -> &'c T {
        &among[self.below(among.len())]
    }

    /// So many bytes, or what is left.
    pub fn bytes(&mut self, count: usize) -> &'b [u8] {
        let (bytes, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        bytes
    }

    /// All that is left.
    pub const fn rest(self) -> &'b [u8] {
        self.0
    }
}
