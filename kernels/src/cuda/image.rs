//! Which form of the kernels a device gets.

#[derive(Debug, PartialEq)]
pub enum Image<'a> {
    /// Machine code.
    Cubin(&'a [u8]),
    /// Text that the driver compiles.
    Ptx(&'a str),
}

impl<'a> Image<'a> {
    /// Machine code of the device's own architecture, or the last text that it can run. Tables go by
    /// compute capability times ten, ascending.
    pub fn of(capability: u32, cubins: &[(u32, &'a [u8])], ptx: &[(u32, &'a str)]) -> Option<Self> {
        let own = cubins.iter().find(|(of, _)| *of == capability);
        let last = ptx.iter().rfind(|(of, _)| *of <= capability);
        own.map(|(_, code)| Self::Cubin(code)).or(last.map(|(_, text)| Self::Ptx(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machine_code_of_the_very_device_goes_before_the_last_text_that_it_can_run() {
        let cubins: [(u32, &[u8]); 2] = [(80, b"80"), (90, b"90")];
        let image = |capability| Image::of(capability, &cubins, &[(80, "80"), (90, "90")]);
        assert_eq!(image(75), None);
        assert_eq!(image(80), Some(Image::Cubin(b"80")));
        assert_eq!(image(86), Some(Image::Ptx("80")));
        assert_eq!(image(90), Some(Image::Cubin(b"90")));
        assert_eq!(image(120), Some(Image::Ptx("90")));
    }
}
