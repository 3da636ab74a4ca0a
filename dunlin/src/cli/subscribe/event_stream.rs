//! Reads server-sent events, as the HTML standard parses them, but for fields
//! that are of no use here. Pure.

/// One block: what stood between two blank lines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Block {
    pub(crate) event: Option<String>,
    /// `None`: the block has no data, only, say, an id.
    pub(crate) data: Option<String>,
    pub(crate) id: Option<String>,
}

/// Puts lines together that arrive in pieces.
#[derive(Debug, Default)]
pub(crate) struct Parser {
    line: Vec<u8>,
    block: Block,
}

impl Parser {
    /// Takes bytes; the blocks that they complete.
    pub(crate) fn feed(&mut self, bytes: &[u8]) -> Vec<Block> {
        let mut blocks = Vec::new();
        for byte in bytes {
            if *byte != b'\n' {
                self.line.push(*byte);
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let line = line.strip_suffix(b"\r").unwrap_or(&line);
            if line.is_empty() {
                let block = std::mem::take(&mut self.block);
                if block != Block::default() {
                    blocks.push(block);
                }
            } else {
                self.field(&String::from_utf8_lossy(line));
            }
        }
        blocks
    }

    fn field(&mut self, line: &str) {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value).to_owned();
        match name {
            "event" => self.block.event = Some(value),
            "id" => self.block.id = Some(value),
            "data" => match &mut self.block.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(&value);
                }
                None => self.block.data = Some(value),
            },
            // Comments begin with the colon; other fields mean nothing to us.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_arrive_in_pieces() {
        let text = b":\n\nid: 7\n\nevent: news\ndata: a\ndata: b\nid: 8\n\ndata: {\"x\": 1}\r\n\r\ndata: cut";
        for size in 1..text.len() {
            let mut parser = Parser::default();
            let blocks: Vec<Block> = text
                .chunks(size)
                .flat_map(|piece| parser.feed(piece))
                .collect();
            let block = |event: Option<&str>, data: Option<&str>, id: Option<&str>| Block {
                event: event.map(Into::into),
                data: data.map(Into::into),
                id: id.map(Into::into),
            };
            assert_eq!(
                blocks,
                [
                    block(None, None, Some("7")),
                    block(Some("news"), Some("a\nb"), Some("8")),
                    block(None, Some("{\"x\": 1}"), None),
                ]
            );
        }
    }
}
