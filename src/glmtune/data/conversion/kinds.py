"""What kind of thing an object is: a small table of endings and names. What it does not know has no kind."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class _Kind:
    """A kind of thing.

    Attributes:
        noun: What one is called: 药品; programming language.
        names: What ends, or is, the name of one, as a regular expression.
        measure: The Chinese measure word.
        plural: What several are called in English.
    """

    noun: str
    names: str
    measure: str = "个"
    plural: str = ""


ZH = (
    _Kind(
        "药品",
        r".+(?:口服液|胶囊|颗粒|冲剂|注射液|软膏|糖浆|滴眼液|缓释片|含片|(?<![图照芯薯影卡名镜刀碎切相])片)"
        r"|阿司匹林|布洛芬|阿莫西林|头孢.*|板蓝根",
    ),
    _Kind(
        "作品",
        r"《[^《》]+》",
        measure="部",
    ),
    _Kind(
        "手机",
        r"(?i:iphone ?\w*(?: pro| max| plus| mini)*|(?:小米|红米|华为|荣耀|三星|苹果|vivo|oppo) ?(?:手机"
        r"|mate ?\d+|p\d+|\d+(?: pro| ultra)*))",
        measure="款",
    ),
    _Kind(
        "编程语言",
        r"(?i:python|java|javascript|typescript|c\+\+|c#|c语言|go语言|golang|rust|php|ruby|kotlin|swift"
        r"|scala|matlab|r语言)",
        measure="种",
    ),
    _Kind(
        "城市",
        r"(?:北京|上海|广州|深圳|杭州|南京|苏州|成都|重庆|武汉|西安|天津|青岛|厦门|长沙|大连|香港|澳门|台北"
        r"|东京|大阪|首尔|纽约|洛杉矶|伦敦|巴黎|柏林|罗马|悉尼|莫斯科|新加坡市|曼谷)市?",
    ),
    _Kind(
        "国家",
        r"中国|美国|英国|法国|德国|日本|韩国|俄罗斯|印度|加拿大|澳大利亚|巴西|意大利|西班牙|葡萄牙|荷兰"
        r"|瑞士|瑞典|挪威|芬兰|丹麦|希腊|埃及|泰国|越南|新加坡|马来西亚",
    ),
    _Kind(
        "水果",
        r"苹果|香蕉|橙子|橘子|柚子|梨子?|桃子?|葡萄|西瓜|哈密瓜|草莓|蓝莓|樱桃|芒果|荔枝|菠萝|榴莲|猕猴桃"
        r"|柠檬",
        measure="种",
    ),
    _Kind(
        "蔬菜",
        r"白菜|菠菜|芹菜|生菜|韭菜|黄瓜|茄子|土豆|萝卜|胡萝卜|西兰花|花椰菜|洋葱|南瓜|冬瓜|豆角",
        measure="种",
    ),
    _Kind(
        "动物",
        r"猫|狗|老虎|狮子|豹子?|狼|狐狸|熊|大熊猫|大象|猴子|猩猩|兔子|老鼠|牛|羊|马|猪|鸡|鸭子?|鹅|骆驼"
        r"|骡子|驴|鲸鱼?|海豚|鲨鱼|企鹅|乌龟|青蛙|蟾蜍|鳄鱼|蝴蝶|飞蛾|蜜蜂|黄蜂|蚂蚁|蜘蛛",
        measure="种",
    ),
    _Kind(
        "疾病",
        r".+(?:肺炎|肝炎|胃炎|肠炎|关节炎|鼻炎|糖尿病|心脏病|白血病|高血压|低血压|综合征)"
        r"|(?:.*[^\W\d])?(?:感冒|流感|糖尿病|肺炎|鼻炎|高血压|低血压)",
        measure="种",
    ),
    _Kind(
        "茶",
        r"绿茶|红茶|白茶|黑茶|黄茶|花茶|乌龙茶?|普洱茶?|龙井茶?|铁观音|碧螺春",
        measure="种",
    ),
    _Kind(
        "大学",
        r".{2,8}大学|北大|清华|复旦|浙大",
        measure="所",
    ),
    _Kind(
        "公司",
        r".{2,}公司|阿里巴巴|腾讯|百度|华为|字节跳动|京东|谷歌|微软|亚马逊|苹果公司",
        measure="家",
    ),
    _Kind(
        "球类运动",
        r"篮球|足球|排球|乒乓球|羽毛球|网球|棒球|高尔夫球?",
        measure="种",
    ),
)

EN = (
    _Kind(
        "programming language",
        r"(?i:python|java|javascript|typescript|c\+\+|c#|golang|rust|php|ruby|kotlin|swift|scala|perl"
        r"|haskell)",
        plural="programming languages",
    ),
    _Kind(
        "city",
        r"(?:London|Paris|Berlin|Rome|Madrid|New York|Los Angeles|Chicago|Tokyo|Beijing|Shanghai|Sydney"
        r"|Moscow|Boston|Seattle|San Francisco)",
        plural="cities",
    ),
    _Kind(
        "country",
        r"(?:China|Japan|India|France|Germany|Italy|Spain|Canada|Australia|Brazil|Mexico|Russia|England"
        r"|(?:the )?(?:UK|USA|US|United States|United Kingdom))",
        plural="countries",
    ),
    _Kind(
        "fruit",
        r"(?i:(?:an? )?(?:apple|banana|orange|pear|peach|grape|strawberry|cherry|mango|lemon|lime|pineapple"
        r"|watermelon)|apples|bananas|oranges|pears|peaches|grapes|strawberries|cherries|mangos|lemons"
        r"|limes)",
        plural="fruits",
    ),
    _Kind(
        "animal",
        r"(?i:(?:an? )?(?:cat|dog|wolf|fox|lion|tiger|leopard|cheetah|bear|rabbit|hare|frog|toad|alligator"
        r"|crocodile|dolphin|whale|shark|bee|wasp|butterfly|moth)|cats|dogs|wolves|foxes|lions|tigers"
        r"|leopards|cheetahs|bears|rabbits|hares|frogs|toads|alligators|crocodiles|dolphins|whales|sharks"
        r"|bees|wasps|butterflies|moths)",
        plural="animals",
    ),
    _Kind(
        "phone",
        r"(?i:(?:the )?(?:iphone ?\w*(?: pro| max| plus)*|(?:samsung )?galaxy ?\w+|pixel ?\d+))",
        plural="phones",
    ),
)


def kind_of(objects: list[str], kinds: tuple[_Kind, ...]) -> _Kind | None:
    """The first kind that all objects are of."""
    names = [each.strip("“”\"「」'‘’ ") for each in objects]
    return next((kind for kind in kinds if all(re.fullmatch(kind.names, name) for name in names)), None)
