//! A Rust file as the rules need it: its words and paths with their lines, without comments and tests.
//!
//! Tokens and not a syntax tree, because half of the calls stand inside macros, whose arguments no parser of the language
//! looks into.

use std::ops::RangeInclusive;

use proc_macro2::{Delimiter, Ident, TokenStream, TokenTree};

/// What a file says outside its tests.
#[derive(Debug, Default)]
pub(super) struct Source {
    /// All identifiers and keywords, with what follows them.
    pub(super) words: Vec<Word>,
    /// `a::b::c`, with the groups of `use` taken apart.
    pub(super) paths: Vec<PathUse>,
    /// Number of lines outside tests.
    pub(super) lines: usize,
}

#[derive(Debug)]
pub(super) struct Word {
    pub(super) text: String,
    pub(super) line: usize,
    /// The word stands behind a dot and an empty pair of parentheses behind it.
    pub(super) is_method_call: bool,
    /// A `!` stands behind it.
    pub(super) is_macro: bool,
}

#[derive(Debug)]
pub(super) struct PathUse {
    pub(super) words: Vec<String>,
    pub(super) line: usize,
}

impl Source {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let tokens: TokenStream = text.parse().map_err(|error| format!("is not Rust: {error}"))?;
        let mut source = Self { lines: text.lines().count(), ..Self::default() };
        source.scan(tokens, &[]);
        Ok(source)
    }

    /// Collects from one level of tokens; `prefix` is the path before the group that we are in.
    fn scan(&mut self, tokens: TokenStream, prefix: &[String]) {
        let tokens: Vec<TokenTree> = tokens.into_iter().collect();
        let mut at = 0;
        while at < tokens.len() {
            if is_test_attribute(&tokens[at..]) {
                let item = at..=end_of_item(&tokens, at);
                self.lines -= lines(&tokens, &item);
                at = item.end() + 1;
                continue;
            }
            at = match &tokens[at] {
                TokenTree::Ident(_) => self.path(&tokens, at, prefix),
                TokenTree::Group(group) => {
                    self.scan(group.stream(), &[]);
                    at + 1
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => at + 1,
            };
        }
    }

    /// Collects the path that begins with the word at `start`; returns where it ends.
    fn path(&mut self, tokens: &[TokenTree], start: usize, prefix: &[String]) -> usize {
        let line = tokens[start].span().start().line;
        let mut words = prefix.to_vec();
        let mut at = start;
        while let Some(TokenTree::Ident(ident)) = tokens.get(at) {
            self.word(tokens, at, ident);
            words.push(ident.to_string());
            at += 1;
            if !is_double_colon(tokens, at) {
                break;
            }
            at += 2;
            if let Some(TokenTree::Group(group)) = tokens.get(at)
                && group.delimiter() == Delimiter::Brace
            {
                self.scan(group.stream(), &words);
                return at + 1;
            }
        }
        let is_used = start > 0 && matches!(&tokens[start - 1], TokenTree::Ident(word) if word == "use");
        if (is_used || words.len() > 1) && !is_tail(tokens, start) {
            self.paths.push(PathUse { words, line });
        }
        at
    }

    fn word(&mut self, tokens: &[TokenTree], at: usize, ident: &Ident) {
        let is_punct = |at: Option<usize>, sign| {
            at.and_then(|at| tokens.get(at))
                .is_some_and(|token| matches!(token, TokenTree::Punct(punct) if punct.as_char() == sign))
        };
        let is_call = matches!(
            tokens.get(at + 1),
            Some(TokenTree::Group(group)) if group.delimiter() == Delimiter::Parenthesis && group.stream().is_empty()
        );
        self.words.push(Word {
            text: ident.to_string(),
            line: ident.span().start().line,
            is_method_call: is_call && is_punct(at.checked_sub(1), '.'),
            is_macro: is_punct(Some(at + 1), '!'),
        });
    }
}

fn is_double_colon(tokens: &[TokenTree], at: usize) -> bool {
    let is_colon =
        |token: Option<&TokenTree>| matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == ':');
    is_colon(tokens.get(at)) && is_colon(tokens.get(at + 1))
}

/// Whether the word at `at` is the rest of a path with something in angle brackets before it: `<T as Trait>::name`.
fn is_tail(tokens: &[TokenTree], at: usize) -> bool {
    at >= 3
        && is_double_colon(tokens, at - 2)
        && matches!(&tokens[at - 3], TokenTree::Punct(punct) if punct.as_char() == '>')
}

/// Whether `#[cfg(test)]` or `#[test]` comes next.
fn is_test_attribute(tokens: &[TokenTree]) -> bool {
    let [TokenTree::Punct(hash), TokenTree::Group(attribute), ..] = tokens else {
        return false;
    };
    let text: String = attribute.stream().to_string().split_whitespace().collect();
    hash.as_char() == '#' && matches!(text.as_str(), "cfg(test)" | "test")
}

/// The last token of the item whose attribute is at `start`: its body in braces, or its semicolon.
fn end_of_item(tokens: &[TokenTree], start: usize) -> usize {
    let ends = |token: &TokenTree| match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        TokenTree::Punct(punct) => punct.as_char() == ';',
        TokenTree::Ident(_) | TokenTree::Literal(_) => false,
    };
    tokens.iter().skip(start).position(ends).map_or(tokens.len() - 1, |length| start + length)
}

fn lines(tokens: &[TokenTree], item: &RangeInclusive<usize>) -> usize {
    tokens[*item.end()].span().end().line + 1 - tokens[*item.start()].span().start().line
}
