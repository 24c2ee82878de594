"""The rules for Chinese: what is to be written, listed or recommended."""

from glmtune.data.conversion.rule import Command, Form, Rule

RULES = (
    Rule(
        "recommend",
        commands=(
            Command(
                verbs=r"推荐|建议|提建议|荐|给出(?=.*建议)|提出(?=.*建议)|提供(?=.*建议)",
                about=r"推荐|建议",
            ),
        ),
        forms=(
            Form(
                reads=(
                    r"(?:推荐|安利|介绍)(?:一下|下)?(?:给我)?(?P<x>(?:几|一|两|二|三|四|五|六|七|八|九|十"
                    r"|\d+)(?:些|[本部款个首家种所条门道只支位台类])[^。？！?!\n：:；;]{1,40}?|(?:一些|些)"
                    r"[^。？！?!\n：:；;]{1,40}?)",
                    r"求?推荐(?:一下|下)?(?P<x>[^。？！?!\n：:；;信人奖理度一下]{2}[^。？！?!\n：:；;]{0,40}?)",
                    r"有(?:什么|没有|哪些|啥)(?P<x>[^，。？！\n]{2,30}?)(?:可以|能|值得)?的?推荐(?:的|一下)?吗?",
                    r"(?P<x>[^，。？！\n]{2,30}?)(?:有哪些|有什么|有啥)(?:可以|值得|好的?)?推荐的?吗?",
                    r"求(?:推荐)?(?P<x>[^，。？！\n：:]{2,30}?)推荐",
                ),
                task="请按下面的要求推荐。",
                asks="请推荐{x}。",
            ),
            Form(
                reads=(r"(?:给|为|向){x}推荐{s}",),
                task="请给下面的人推荐{s}。",
                asks="请给{x}推荐{s}。",
                where={
                    "s": r"[^。？！?!\n：:；;]{2,30}",
                },
            ),
        ),
    ),
    Rule(
        "write",
        commands=(
            Command(
                verbs=(
                    r"写|生成|创建|创作|编写|撰写|编[一个]|起草|拟写|设计|制作|构思|草拟|拟定|制定|出[一个\d]|提出"
                    r"|回复|画[一个]|编排"
                    r"|策划|输出|作一"
                ),
            ),
        ),
        forms=(
            Form(
                reads=(
                    r"{work}{count}(?:以)?{x}为题目?的{genre}",
                    r"(?:以|用){x}为题目?[，,]?{work}{count}{genre}",
                    r"{work}{count}题[为目](?:是)?{x}的{genre}",
                ),
                task="请以下面的内容为题{work}{count}{genre}。",
                asks="请以“{x}”为题{work}{count}{genre}。",
            ),
            Form(
                reads=(r"{manner}{work}{count}(?:关于|描写|描述|赞美){x}的{genre}",),
                task="请{manner}{work}{count}关于下面主题的{genre}。",
                asks="请{manner}{work}{count}关于{x}的{genre}。",
            ),
            Form(
                reads=(r"(?:编写|写|实现)(?:一个|一段|个|段){x}的{genre}{s}",),
                task="请写一个完成下面功能的{genre}{s}。",
                asks="请写一个{x}的{genre}{s}。",
                where={
                    "genre": r"[A-Za-z+#\d]{1,12}",
                    "s": r"函数|程序|代码|脚本|算法|类",
                    "x": r"[^。？！?!\n的关]{3,60}?",
                },
            ),
            Form(
                reads=(
                    r"{work}{count}(?:关于|有关|描写|描述|介绍|赞美|歌颂|讲述|描绘|以|论述|讨论){x}(?:为主题"
                    r"|为题材|为背景|主题)?的{genre}",
                    r"{work}{count}以{x}为(?:主题|题材|背景)的{genre}",
                    r"(?:以|用){x}为(?:主题|题材|背景)[，,]?{work}{count}{genre}",
                    r"(?:围绕|针对|就|关于|根据){x}(?:这[一个]?个?(?:主题|话题))?[，,]?{work}{count}{genre}",
                    r"{work}{count}{genre}[，,](?:主题|题目|内容)(?:是|为|关于){x}",
                ),
                task="请{work}{count}关于下面主题的{genre}。",
                asks="请{work}{count}关于{x}的{genre}。",
            ),
            Form(
                reads=(r"{p}{x}{work}{count}{genre}",),
                task="请{p}下面的{thing}{work}{count}{genre}。",
                asks="请{p}{x}{work}{count}{genre}。",
                thing="对象",
                where={"p": "给|为"},
            ),
            Form(
                reads=(r"{work}{count}给{x}的{genre}",),
                task="请给下面的{thing}{work}{count}{genre}。",
                thing="对象",
            ),
            Form(
                reads=(r"(?:用|使用){genre}(?:语言)?(?:写|编写|实现|写出)(?:一个|一段|个|段)?{x}的{s}",),
                task="请用{genre}写一个完成下面功能的{s}。",
                asks="请用{genre}写一个{x}的{s}。",
                where={
                    "genre": r"[A-Za-z+#\d]{1,12}",
                    "s": r"函数|程序|代码|脚本|算法|类",
                    "x": r"[^。？！?!\n的]{3,60}?",
                },
            ),
            Form(
                reads=(r"(?:用|使用){genre}(?:语言)?(?:来)?实现(?:一个|一种)?{x}",),
                task="请用{genre}实现下面的功能。",
                asks="请用{genre}实现{x}。",
                where={"genre": r"[A-Za-z+#\d]{1,12}"},
            ),
        ),
    ),
    Rule(
        "list",
        commands=(
            Command(
                verbs=(
                    r"列出|列举|举出|举(?=例|[一二两三四五六七八九十几\d])|说出|写出|给出|提供|罗列|枚举"
                    r"|给(?=[一二两三四五六七八九十几\d])|想出|提出|说明(?=.*(?:步骤|优缺点))"
                    r"|介绍"
                ),
            ),
        ),
        forms=(
            Form(
                reads=(
                    r"(?:{verb})(?:一下)?(?:有关|关于|对于?){x}的{n}{s}",
                    r"(?:{verb})?(?:一下)?{n}(?:有关|关于|对于?){x}的{s}",
                    r"(?:有关|关于|对于?){x}[，,]?(?:{verb}){n}{s}",
                ),
                task="请给出关于下面主题的{n}{s}。",
                asks="请给出{n}关于{x}的{s}。",
                where={
                    "s": r"[^，。？！\n的]{2,8}",
                },
            ),
            Form(
                reads=(
                    r"(?:{verb})(?:一下)?{x}的{n}个?{attr}",
                    r"(?:{verb})(?:一下)?(?:至少)?{n}{x}的{attr}",
                ),
                task="请列出下面{thing}的{n}{attr}。",
                asks="请列出{x}的{n}{attr}。",
                thing="事物",
            ),
            Form(
                reads=(r"(?:{verb}|想出)(?:一下|至少)?{n}{s}{x}",),
                task="请列出{n}{s}达到下面目的的事物。",
                asks="请列出{n}{s}{x}。",
                where={
                    "s": r"有助于|能够?|可以|用于|适合|帮助|避免|提高|减少|改善|缓解|预防|促进|保持",
                    "x": r"[^。？！?!\n：:；;]{2,30}",
                },
            ),
            Form(
                reads=(
                    r"(?:{verb})(?:一下|至少)?{n}{x}(?:的例子|的名字|的名称)?",
                    r"说出{x}中的{n}",
                ),
                task="请列出下面这类事物中的{n}。",
                asks="请列出{n}{x}。",
            ),
            Form(
                reads=(r"(?:列举|列出|举例说明|罗列)(?:一下)?(?:一些|所有的?|几个)?{x}",),
                task="请列举下面这类事物。",
                asks="请列举{x}。",
            ),
        ),
    ),
    Rule(
        "which ones",
        forms=(
            Form(
                reads=(
                    r"{x}(?:都|主要|分别)?(?:有|是|包括)哪(?:些|几[个种类])",
                    r"有哪些{x}",
                ),
                task="请列出下面所说的事物。",
                asks="{x}有哪些？",
                where={
                    "x": r"[^，。？！\n：:你我他她它这那]{3,30}?",
                },
            ),
            Form(
                reads=(r"{x}有哪些{s}",),
                task="请列出下面所说的事物。",
                object="{x}的{s}",
                where={"x": r"[^，。？！\n：:你我他她它这那]{2,16}?", "s": r"[^，。？！\n：:是]{2,16}"},
            ),
        ),
    ),
)
