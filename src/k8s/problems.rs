//! Sentences about what is wrong with one object.

/// The first sentences about one object; the rest are counted. An object with thousands of faults
/// must not fill memory and `status` with them.
#[derive(Debug, Default)]
pub(super) struct Problems {
    sentences: Vec<String>,
    more: usize,
}

impl Problems {
    /// Sentences kept for one object.
    const MAX: usize = 16;

    pub(super) fn push(&mut self, sentence: String) {
        if self.sentences.len() < Self::MAX {
            self.sentences.push(sentence);
        } else {
            self.more += 1;
        }
    }

    pub(super) fn into_sentences(mut self) -> Vec<String> {
        if self.more > 0 {
            self.sentences.push(format!("and {} more", self.more));
        }
        self.sentences
    }
}

/// Text of an object in quotes, shortened to 80 characters.
pub(crate) fn quoted(text: &str) -> String {
    const MAX: usize = 80;
    match text.char_indices().nth(MAX) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
    }
}
