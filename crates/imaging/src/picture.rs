/// Channels of a pixel: red, green, blue.
pub(crate) const CHANNELS: usize = 3;

/// An upright picture: RGB, 8 bits a channel, row by row from the top left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl Picture {
    /// A picture out of `width × height × 3` bytes; `None` when there are more or fewer, or no pixel at all.
    pub fn new(width: u32, height: u32, pixels: Vec<u8>) -> Option<Self> {
        let bytes = u64::from(width) * u64::from(height) * CHANNELS as u64;
        (bytes > 0 && bytes == pixels.len() as u64).then_some(Self { width, height, pixels })
    }

    /// A black picture.
    pub(crate) fn black(width: u32, height: u32) -> Self {
        Self { width, height, pixels: vec![0; width as usize * height as usize * CHANNELS] }
    }

    /// Width, px.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height, px.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The bytes: RGB, row by row from the top left.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The bytes, given away.
    pub fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }

    /// The rows from the top, `width × 3` bytes each.
    pub fn rows(&self) -> std::slice::ChunksExact<'_, u8> {
        self.pixels.chunks_exact(self.stride())
    }

    pub(crate) fn rows_mut(&mut self) -> std::slice::ChunksExactMut<'_, u8> {
        let stride = self.stride();
        self.pixels.chunks_exact_mut(stride)
    }

    pub(crate) fn row(&self, y: usize) -> &[u8] {
        &self.pixels[y * self.stride()..][..self.stride()]
    }

    pub(crate) fn stride(&self) -> usize {
        self.width as usize * CHANNELS
    }
}
