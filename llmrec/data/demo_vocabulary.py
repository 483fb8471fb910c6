"""The demo's shop: what it sells, under whose brands, and in which order people take up a pastime.

Everything here is made up for this project. A taste is a path of eight kinds of product that goes round the domains
twice: first what a starter eats, uses, reads and grows, then what an enthusiast does. Another product of the kind
that somebody has just bought is the likest title and a poor guess, so who wants to predict the next purchase has to
learn what follows what.
"""

from __future__ import annotations

BOOKS, GARDEN, GROCERY, KITCHEN = "Books", "Garden", "Grocery", "Kitchen"

PATH_DOMAINS = (GROCERY, KITCHEN, BOOKS, GARDEN, GROCERY, KITCHEN, BOOKS, GARDEN)
"""Domain of each step of every taste."""

# fmt: off
# Taste → for each step, the wordings of its products. The first three are on sale from the beginning; a fourth,
# where there is one, arrives late.
TASTES: dict[str, tuple[tuple[str, ...], ...]] = {
    "espresso": (
        ("Ground Espresso Coffee, Dark Roast", "Classic Italian Ground Coffee", "Coffee Capsules, Intense"),
        ("Stovetop Moka Pot, 6 Cup", "French Press Coffee Maker", "Drip Coffee Machine, 10 Cup",
         "Cold Brew Coffee Carafe"),
        ("Coffee for Beginners", "My First Cup: Brewing at Home", "The Little Book of Coffee"),
        ("Coffee Plant Seedling, Arabica", "Coffee Grounds Compost Mix", "Burlap Coffee Sack Planter"),
        ("Whole Bean Ethiopia Yirgacheffe", "Single Origin Guatemala Beans, Light Roast", "Kenya AA Micro Lot Beans",
         "Colombia Huila Reserve Beans"),
        ("Conical Burr Grinder, 40 Settings", "Dual Boiler Espresso Machine", "Calibrated Tamper and Portafilter",
         "Low Retention Single Dose Grinder"),
        ("The Barista's Handbook", "Extraction: The Science of Espresso", "Latte Art Masterclass",
         "Behind the Bar: A Barista Champion Explains"),
        ("Patio Drum Roaster for Green Beans", "Outdoor Coffee Roaster, Gas", "Balcony Bean Cooling Tray"),
    ),
    "tea": (
        ("English Breakfast Tea Bags", "Earl Grey Sachets", "Chai Tea Bags, Spiced"),
        ("Porcelain Teapot with Strainer", "Glass Tea Infuser Mug", "Mesh Tea Ball", "Enamel Tea Kettle"),
        ("Tea for Beginners", "Afternoon Tea at Home", "A Pocket Guide to Tea"),
        ("Chamomile and Mint Tea Seeds", "Lemon Balm Plants for Herbal Tea", "Jasmine Climber, Scented"),
        ("Loose Leaf Darjeeling First Flush", "High Mountain Oolong, Alishan", "Ceremonial Matcha, Uji Style",
         "Aged Pu Erh Cake"),
        ("Gooseneck Kettle with Temperature Control", "Clay Gaiwan Set", "Bamboo Matcha Whisk and Bowl",
         "Yixing Style Clay Pot"),
        ("Gongfu: The Way of Tea", "Terroir of Tea: Six Families in Depth", "The Tea Master's Notebook",
         "Leaf and Water: Advanced Tasting"),
        ("Camellia Sinensis Shrub, Two Year Old", "Shade Cloth for Tea Bushes", "Tea Leaf Rolling and Drying Basket"),
    ),
    "bread": (
        ("Instant Dry Yeast", "All Purpose Bread Flour", "No Knead Loaf Mix", "Soda Bread Mix"),
        ("Non Stick Loaf Pan", "Dough Scraper", "Automatic Bread Machine"),
        ("Bread for Beginners", "My First Loaf", "Easy Weekend Baking: Rolls and Loaves"),
        ("Wheat Seeds for Small Plots", "Sunflower and Poppy Seeds to Grow for Loaves", "Rosemary Plant for Focaccia",
         "Oat Seeds, Hulless"),
        ("Live Sourdough Starter Culture", "Stone Milled Whole Rye Flour", "Heritage Spelt Flour",
         "Einkorn Berries, Whole"),
        ("Rattan Banneton with Liner", "Cast Iron Dutch Oven for Sourdough", "Scoring Lame with Blades",
         "Electric Stone Grain Mill"),
        ("Sourdough: The Science of Open Crumb", "Hydration: An Advanced Baker's Manual", "Wild Yeast Masterclass"),
        ("Wood Fired Clay Bread Oven", "Brick Oven Kit with Arched Door", "Oven Firewood and Ash Rake",
         "Cob Oven Building Kit"),
    ),
    "sushi": (
        ("Sushi Rice, Short Grain", "Roasted Nori Sheets", "Seasoned Rice Vinegar", "Pickled Sushi Ginger"),
        ("Bamboo Sushi Rolling Mat", "Sushi Maker Mould Kit", "Rice Cooker, 3 Cup"),
        ("Sushi for Beginners", "My First Maki Rolls", "Easy Japanese Suppers"),
        ("Shiso and Mitsuba Seeds", "Daikon Radish Seeds", "Japanese Cucumber Plants"),
        ("Barrel Aged Soy Sauce", "Shaved Bonito and Kelp for Dashi", "White Miso, Aged", "Tuna Saku Block, Frozen"),
        ("Yanagiba Sashimi Knife, 270 mm", "Hangiri Cypress Rice Tub", "Whetstone for Japanese Knives",
         "Deba Fish Knife, Blue Steel"),
        ("The Sushi Master's Counter", "Sashimi: The Craft of Cutting Fish", "Omakase: Advanced Techniques from Tokyo"),
        ("Wasabi Rhizomes for Shaded Beds", "Yuzu Tree, Grafted", "Bonsai and Moss Garden for the Table",
         "Sansho Pepper Tree"),
    ),
    "barbecue": (
        ("Smoky Barbecue Sauce", "Burger Seasoning", "Sweet Rib Rub"),
        ("Barbecue Tongs and Turner", "Burger Press", "Flat Metal Skewers", "Basting Brush and Sauce Pot"),
        ("Grilling for Beginners", "My First Barbecue", "Easy Backyard Burgers"),
        ("Kettle Charcoal Grill, 18 Inch", "Tabletop Gas Grill", "Grill Cover and Charcoal Briquettes",
         "Folding Picnic Grill"),
        ("Whole Packer Brisket, Dry Aged", "Competition Beef Injection", "Texas Style Pepper Rub",
         "Post Oak Smoked Salt"),
        ("Wireless Meat Thermometer, Four Probes", "Brisket Slicing Knife", "Pink Butcher Paper for Brisket",
         "Pit Controller with Fan"),
        ("The Pitmaster's Logbook", "Smoke: The Science of Brisket", "Competition Barbecue Masterclass"),
        ("Offset Smoker, Heavy Steel", "Ceramic Kamado Smoker", "Hickory and Applewood Smoking Chunks",
         "Reverse Flow Smoker on Wheels"),
    ),
    "cakes": (
        ("Yellow Cake Mix", "Vanilla Frosting Tub", "Rainbow Sprinkles", "Red Velvet Cupcake Mix"),
        ("Cupcake Tin and Liners", "Springform Cake Tin", "Hand Mixer"),
        ("Cakes for Beginners", "My First Cupcakes", "Easy Birthday Cakes"),
        ("Strawberry Plants for Cake Toppings", "Raspberry Canes for Bakers", "Potted Mint for Desserts",
         "Blueberry Bush, Dwarf"),
        ("Rolled Fondant, White", "Edible Gold Leaf", "Gel Food Colours, 12 Shades", "Pearl Lustre Dust"),
        ("Rotating Cake Turntable", "Piping Tips and Pastry Bags", "Airbrush Kit for Cake Decorating",
         "Fondant Sheeter"),
        ("The Sugar Florist", "Wedding Cakes: Tiers, Dowels and Structure", "Buttercream Roses Masterclass"),
        ("Edible Viola and Nasturtium Seeds", "Unsprayed Rose Bush for Petals", "Lavender Plugs for Pastry",
         "Borage and Cornflower Seeds, Edible"),
    ),
    "curry": (
        ("Tikka Masala Simmer Sauce", "Mild Korma Curry Paste", "Microwave Basmati Rice"),
        ("Non Stick Curry Pan", "Basmati Rice Pot", "Naan and Chapati Tray", "Rice Strainer Bowl"),
        ("Curry for Beginners", "My First Indian Dinners", "Easy Weeknight Dal"),
        ("Coriander and Fenugreek Seeds to Grow", "Mild Chilli Plants", "Spinach Seeds for Saag",
         "Okra Seeds, Green"),
        ("Whole Cumin, Cardamom and Cloves", "Kashmiri Chilli, Whole", "Black Mustard Seeds and Asafoetida",
         "Saffron Threads, Kashmir"),
        ("Granite Mortar for Spices", "Wet and Dry Masala Grinder", "Brass Masala Dabba", "Hammered Karahi"),
        ("The Spice Merchant's Ledger: Masalas from Scratch", "Tempering: The Science of Indian Spice",
         "Regional Thalis Masterclass"),
        ("Clay Tandoor Oven", "Curry Leaf Tree", "Turmeric and Ginger Rhizomes", "Ghost Pepper Plants"),
    ),
    "cocktails": (
        ("Tonic Water Cans", "Margarita Mixer", "Cocktail Cherries", "Pina Colada Mixer"),
        ("Cocktail Shaker with Strainer", "Highball Glasses", "Cocktail Umbrellas and Straws"),
        ("Cocktails for Beginners", "My First Home Bar", "Easy Party Drinks"),
        ("Mint Plant for Mojitos", "Potted Lime Tree", "Patio Bar Cart", "Outdoor Drinks Cooler Table"),
        ("Aromatic Bitters", "Orgeat Almond Syrup", "Barrel Aged Grenadine", "Celery Bitters, Small Batch"),
        ("Yarai Mixing Glass and Bar Spoon", "Clear Ice Mould", "Hawthorne and Julep Strainers",
         "Hand Blown Coupe Glasses"),
        ("The Bartender's Almanac", "Liquid: The Science of Cocktails", "Tiki and Tincture Masterclass"),
        ("Juniper Shrub for Home Gin", "Wormwood and Gentian Plants for Bitters", "Copper Still for Essences, Outdoor"),
    ),
    "cheese": (
        ("Sliced Cheddar", "Brie Wheel", "Crackers for Cheese", "Mozzarella Sticks"),
        ("Cheese Board with Knives", "Fondue Pot", "Cheese Grater"),
        ("Cheese for Beginners", "My First Cheese Board", "Easy Fondue Nights", "The Little Book of Cheddar"),
        ("Chive and Dill Seeds for Cream Cheese", "Fig Tree, Potted", "Grape Vine for Cheese Plates"),
        ("Rennet Tablets", "Mesophilic Cheese Culture", "Penicillium Mould Powder", "Calcium Chloride for Curds"),
        ("Cheese Press in Ash Wood", "Curd Knife and Draining Moulds", "Dairy Thermometer", "Ripening Cave Fridge"),
        ("The Affineur's Cellar", "Rind: The Science of Ripening", "Alpine Wheels: A Cheesemaking Masterclass"),
        ("Goat Milking Stand", "Electric Netting for Dairy Goats", "Clover Pasture Seed for Milking Herds",
         "Hay Feeder for Dairy Sheep"),
    ),
    "camp": (
        ("Trail Mix", "Instant Oatmeal for Camping", "Marshmallows for Campfires"),
        ("Camping Mug", "Picnic Plates, Unbreakable", "Roasting Forks for Campfires", "Insulated Flask"),
        ("Camping for Beginners", "My First Night Outdoors", "Easy Campfire Cooking"),
        ("Two Person Dome Tent", "Foam Sleeping Pad", "Camping Lantern", "Folding Camp Chair"),
        ("Freeze Dried Expedition Dinner", "High Calorie Trail Bars", "Powdered Whole Egg for Backpacking"),
        ("Titanium Backpacking Pot", "Food Dehydrator with Ten Trays", "Vacuum Sealer for Trail Meals",
         "Titanium Spork and Cup"),
        ("The Thru Hiker's Logbook", "Cold: The Science of Survival", "Alpine Navigation Masterclass"),
        ("Ultralight Down Quilt", "Four Season Mountain Tent", "Remote Canister Stove, Expedition",
         "Bear Canister for Backcountry"),
    ),
}

STAPLES: dict[str, tuple[str, ...]] = {
    GROCERY: ("Paper Towels", "Peanut Butter, Creamy", "Sparkling Water", "Granola Bars", "Dish Soap, Lemon",
              "Chicken Broth"),
    KITCHEN: ("Food Storage Containers", "Microfibre Cloths", "Silicone Spatula Set", "Toaster, Two Slices",
              "Plastic Cutting Boards", "Vegetable Peeler"),
    BOOKS: ("The Lighthouse Keeper's Daughter: A Novel", "Murder at Fallow Hall", "Small Habits, Long Roads",
            "Atlas of Vanished Railways", "The Salt Queen: Book One", "Mindful Mornings: A Journal"),
    GARDEN: ("Expandable Hose", "Solar Path Lights", "Potting Mix", "Pruning Shears", "Citronella Candles",
             "Bird Feeder"),
}
# fmt: on
"""What everybody buys now and then, whatever their taste."""

BRANDS: dict[str, tuple[str, ...]] = {
    GARDEN: ("Oakhollow", "Brackenby", "Sunmere", "Wrenfold", "Verdalune", "Tarn & Thicket"),
    GROCERY: ("Marlowe", "Tilbury Lane", "Nettlewick", "Pomona Row", "Umberfield", "Oriella"),
    KITCHEN: ("Corvelle", "Hartmoor", "Pellingford", "Domovka", "Lumeria", "Kestrel & Tide"),
}
"""Makers by domain. A brand sells to every taste, so it gives none away. Books have an author instead."""

AUTHORS: tuple[str, ...] = (
    "Ines Calloway",
    "Tobias Renfrew",
    "Marguerite Osei",
    "Dag Lindqvarn",
    "Priya Thornbury",
    "Lorcan Whitlow",
    "Hanae Brandt",
    "Emeka Vandermolen",
)

DETAILS: dict[str, tuple[str, ...]] = {
    BOOKS: ("Paperback", "Hardcover", "Illustrated Edition", "Second Edition"),
    GARDEN: ("2 Pack", "Large", "Compact", "New Season"),
    GROCERY: ("12 oz", "Pack of 3", "Pack of 6", "Family Size", "16 Ounce"),
    KITCHEN: ("Black", "Stainless Steel", "Gift Box", "Cream", "Slate Grey"),
}
"""What shops append to a title; drawn at random, so it says nothing about what comes next."""
