"""Texts that tokenizers are trained on and tested with: written for this project."""

TRAINING = """\
灵渠在广西兴安，秦始皇二十八年开凿，沟通湘江和漓江，两千多年来一直有水流过。
一条河分成两条，一股水流分给许多田地；一串词元分给许多专家，每位专家只做自己的一份。
你好！请问今天的天气怎么样？明天会下雨吗？我们后天去爬山，好不好？
北京是中国的首都，上海是最大的城市，广州在南方，成都的火锅很辣。
人工智能模型读取文本，把文本切成词元，再预测下一个词元；词元有长有短。
政府部门、学校和医院都需要可靠、安全、可以核查的服务，数据不能离开机房。
床前有灯，窗外有雨。春天来了，花开了，草绿了，孩子们在院子里跑来跑去。
The canal divides one river into two, and the model divides one stream of tokens over many experts.
Hello, how are you today? I'm fine, thanks; we're going to the market, and they'll come later.
She said: "Don't worry, it isn't far." He'd never seen it, but you've been there, haven't you?
The quick brown fox jumps over the lazy dog. Numbers: 1, 12, 123, 1234, 12345, 3.14159, 1,000,000.
What is the capital of France? The capital of France is Paris. What is the capital of China? Beijing.
fn main() {
    let mut total = 0u64;
    for value in [1, 2, 3, 10, 100] {
        total += value;
    }
    println!("the total is {total}");
}
def forward(self, hidden_states, position_ids=None):
    if position_ids is None:
        position_ids = torch.arange(hidden_states.shape[1])
    return self.norm(hidden_states) * self.weight

    return x == y || x != z && !(a <= b);   // a comment
{"role": "user", "content": "hello", "temperature": 0.6, "stop": ["\\n\\n"]}
SELECT name, count(*) FROM tokens WHERE id >= 128 GROUP BY name ORDER BY 2 DESC;
Straße, naïve, café, señor, Привет мир, こんにちは世界、カタカナ, 안녕하세요, مرحبا, שלום, ไทย, हिन्दी
😀 😃 👍 👍🏽 👨‍👩‍👧‍👦 🇨🇳 🚀🚀 ❤️ ✅
"""

TEXTS = [
    "",
    " ",
    "a",
    "你",
    "Hello, world!",
    "Hello  world",
    "  leading and trailing  ",
    "\ttabs\t\tand\t spaces \t",
    "line one\nline two\n\nline four\n\n\n",
    "windows\r\nline ends\r\n\r\n",
    "\r",
    "\n \n  \n",
    "word \n  indented\n\tdef f():\n\t\treturn 1",
    "你好，世界！",
    "灵渠沟通湘江与漓江，公元前214年建成。",
    "中文English混排mixed文本text没有空格",
    "中文 与 English 之间 有 空格",
    "２０２６年１１月２２日（星期日）",
    "第一，第二；第三：“引号”‘单引号’《书名号》——破折号……省略号",
    "繁體字：臺灣、香港、機器學習",
    "𠮷野家 㐀㐁 龘龘 鿿 〇",
    "ひらがなとカタカナ、漢字まじり文。ー〜",
    "ｶﾀｶﾅ ﾊﾝｶｸ",
    "안녕하세요 세계",
    "Привет, мир! Ёлка",
    "مرحبا بالعالم، كيف الحال؟",
    "שלום עולם",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "Straße Ünïcödé façade naïve",
    "e\u0301 cafe\u0301 (NFD) and é café (NFC)",
    "A\u030angstro\u0308m vs Ångström \u212b",
    "\u1112\u1161\u11ab 한",
    "ﬁ ﬂ ligatures ① ② ㈱ ½ ² ₃",
    "1",
    "12",
    "123",
    "1234",
    "1234567890",
    "3.14159265358979",
    "1,000,000.00",
    "0x1F 1e-10 192.168.0.1 2026-11-22T04:30:00Z",
    "abc123def456 v2.0.1-rc3",
    "Ⅷ Ⅻ ٣٤٥ ४५६ 一二三",
    "I'm you're he's we'll they've I'd don't it's",
    "I'M YOU'RE HE'S WE'LL THEY'VE I'D DON'T",
    "'tis 'twas o'clock rock'n'roll '' 'quoted'",
    "don’t it’s typographic",
    "for (int i = 0; i < n; ++i) { a[i] = b[i] * 2; }",
    "def f(x):\n    return x ** 2  # comment\n\n\nprint(f(3))\n",
    "let s: &str = \"r#\\\"raw\\\"#\"; // 注释",
    "<div class=\"a b\">text &amp; more</div>",
    "https://example.com/path?q=1&r=%E4%BD%A0#frag",
    "user@example.com C:\\Windows\\System32 /usr/local/bin",
    "{\"a\": [1, 2.5, null], \"b\": {\"c\": \"\\u4f60\"}}",
    "$x^2 + y^2 = z^2$ ∑ ∫ ≤ ≥ ≠ → ∀ ∃",
    "!!! ??? ... --- === *** ### @@@ ~~~ ```",
    "._-+*/\\|#@!$%^&()[]{}<>?,;:'\"`~=",
    "😀",
    "😀😃😄 👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇨🇳🇫🇷 ❤️ ☃",
    "text😀text 你😀好",
    "zero\u200bwidth\u200djoiner\ufeffbom",
    "no\u00a0break\u2003em\u3000ideographic\u2028line\u2029para\u0085next",
    "\u0000nul\u0001\u001b[31mansi\u007f",
    "\ufffd replacement \ufffe\uffff \U0010ffff \ue000 private",
    "\u202eright-to-left override\u202c",
    "a\u0300\u0301\u0302\u0303 zalgo z\u0338",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈哈",
    "                                                                ",
    "=" * 70,
    "The capital of France is Paris. 法国的首都是巴黎。",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "CamelCaseIdentifier snake_case_identifier SCREAMING_SNAKE kebab-case",
    " a  b   c    d     e",
    "x\n\n\n\ny",
    "trailing newline\n",
    "trailing space ",
    "（全角括号） ！ ？ ， 。",
    "汉字123汉字 abc汉字 汉字abc 3个 第3章",
    "price: ￥100 / $99.99 / €1.234,56 / 100%",
    "µm Ω Å K ℃ ªº",
]

# What the texts with special tokens look like, in the tokenizer's own special tokens: {0}, {1} ... are replaced.
SPECIAL_TEXTS = [
    "{0}",
    "{0}{1}",
    "{0}Hello{1}",
    "before {0} after {1}\n",
    "你好{1}世界",
    " {0} {0}",
    "{1}{1}{0}",
]
ALMOST_SPECIAL = ["<|", "<｜", "|>", "<think", "<think>inside</think>outside", "<|not_a_token|>"]
ALMOST_SPECIAL += ["<｜User｜>hi<｜Assistant｜>"]
